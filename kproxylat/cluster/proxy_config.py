"""kube-proxy's configuration in the API: its ConfigMap, its pods' flags, its node's arguments, or its replacement."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from kproxylat.cluster.api import Api
from kproxylat.cluster.kubeconfig import Object
from kproxylat.errors import ApiError, MachineError
from kproxylat.modes import DEFAULT_MODE

NAMESPACE = "/namespaces/kube-system"
DAEMONSETS = f"/apis/apps/v1{NAMESPACE}/daemonsets"
CONFIGMAPS = f"/api/v1{NAMESPACE}/configmaps"
CONFIGMAP_NAMES = ("kube-proxy", "kube-proxy-config")
"""The names that kubeadm and EKS use."""
CONFIG_KEYS = ("config.conf", "config", "kube-proxy-config.yaml")
"""The keys of kubeadm, of older versions and EKS, and of OpenShift."""
POD_LABELS = ("k8s-app=kube-proxy", "component=kube-proxy")
"""The labels of kubeadm's pods, and of the static pods of RKE2 and GKE."""
BY_HAND = "edit it by hand: kubectl -n kube-system edit configmap kube-proxy"
_MODE_LINE = re.compile(r"""^mode:[ \t]*(?:"\w*"|'\w*'|\w*)([ \t]*|[ \t]+\#.*)(?=\r?$)""", re.M)
NODE_ARGUMENTS = ("k3s.io/node-args", "rke2.io/node-args")
"""Annotations of a node whose kube-proxy is part of another program: the program's arguments, as a JSON list."""
REPLACEMENTS = {
    "anetd": "GKE Dataplane V2 (Cilium)",
    "antrea-agent": "Antrea",
    "calico-node": "Calico",
    "cilium": "Cilium",
    "kube-router": "kube-router",
    "ovnkube-node": "OVN-Kubernetes",
}
"""DaemonSet in kube-system -> the program that can replace kube-proxy."""


@dataclass(frozen=True)
class Setting:
    """A mode in kube-proxy's configuration.

    :param source: the object and the field that hold it.
    """

    source: str
    mode: str


@dataclass(frozen=True)
class ConfigMapKey:
    """The key of a ConfigMap in kube-system that holds kube-proxy's configuration.

    :param changed: the time of the last change, by the API server's clock ("" if unknown).
    """

    name: str
    key: str
    text: str
    changed: str = ""


@dataclass
class Configured:
    """kube-proxy's configuration in the API.

    :param settings: the modes in the configuration.
    :param config: the ConfigMap's key (None: the configuration is not in a ConfigMap).
    :param daemonsets: DaemonSets that read this ConfigMap.
    :param workloads: number of DaemonSets, pods or node programs that run kube-proxy.
    :param replacements: programs in the cluster that can replace kube-proxy.
    :param unasked: sources that could not be read, with the reason.
    """

    settings: list[Setting] = field(default_factory=list)
    config: ConfigMapKey | None = None
    daemonsets: list[Object] = field(default_factory=list)
    workloads: int = 0
    replacements: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)

    @contextmanager
    def asking(self, source: str) -> Iterator[None]:
        """Note a source that may not be read, and continue without it."""
        try:
            yield
        except ApiError as error:
            if error.status != 403:
                raise
            self.unasked.append(f"{source}: {error}")


def read_configured(api: Api, node: str) -> Configured:
    """Read kube-proxy's configuration from every source in the API that may be read.

    :param node: the name of this machine's node, whose pod and arguments are preferred.
    :raises MachineError: the API cannot be reached.
    """
    configured = Configured()
    daemonsets: list[Object] = []
    with configured.asking("DaemonSets in kube-system"):
        daemonsets = list(api.list(DAEMONSETS))
    proxies = [daemonset for daemonset in daemonsets if is_kube_proxy(daemonset)]
    for proxy in proxies:
        config = _read_pod(api, configured, f"DaemonSet {proxy['metadata']['name']}", proxy["spec"]["template"]["spec"])
        if config and config == configured.config:
            configured.daemonsets.append(proxy)
    if not proxies:
        with configured.asking("pods in kube-system"):
            for pod in _list_pods(api, node):
                _read_pod(api, configured, f"pod {pod['metadata']['name']}", pod["spec"])
    if not configured.config and not configured.settings:
        _read_config(api, configured, CONFIGMAP_NAMES, CONFIG_KEYS)
    if not configured.settings:
        with configured.asking("nodes"):
            configured.settings += parse_node_arguments(list(api.list("/api/v1/nodes")), node)
            configured.workloads += len(configured.settings)
    with configured.asking("ConfigMap cilium-config"):
        cilium = (api.find(f"{CONFIGMAPS}/cilium-config") or {}).get("data") or {}
        if cilium.get("kube-proxy-replacement") in ("true", "strict"):
            configured.replacements.append("Cilium (ConfigMap cilium-config: kube-proxy-replacement)")
    if not configured.workloads and not configured.replacements:
        for name in (daemonset["metadata"]["name"] for daemonset in daemonsets):
            if name in REPLACEMENTS:
                configured.replacements.append(f"{REPLACEMENTS[name]} (DaemonSet {name})")
    return configured


def _list_pods(api: Api, node: str) -> list[Object]:
    """Return the node's pod of kube-proxy; if the node has none, one pod of the cluster for each set of flags."""
    for selector in ({"fieldSelector": f"spec.nodeName={node}"}, {}):
        by_flags: dict[str, Object] = {}
        for label in POD_LABELS:
            for pod in api.list(f"/api/v1{NAMESPACE}/pods", labelSelector=label, **selector):
                by_flags.setdefault(str(parse_flags(_words(_proxy_of(pod["spec"])))), pod)
        if by_flags:
            return list(by_flags.values())
    return []


def last_change(document: Object) -> str:
    """Return the time of an object's last change, except of its status, by the API server's clock; "" if unknown."""
    fields = document["metadata"].get("managedFields") or ()
    return max((entry.get("time") or "" for entry in fields if entry.get("subresource") != "status"), default="")


def is_kube_proxy(daemonset: Object) -> bool:
    """Return whether a DaemonSet runs kube-proxy on Linux."""
    spec = daemonset["spec"]["template"]["spec"]
    if (spec.get("nodeSelector") or {}).get("kubernetes.io/os") == "windows":
        return False
    return any("kube-proxy" in (container["name"], *_words(container)[:1]) for container in spec["containers"])


def _words(container: Object) -> list[str]:
    """Return a container's command line; the program without its directory."""
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    return [PurePosixPath(words[0]).name, *words[1:]] if words else []


def parse_flags(words: Sequence[str]) -> dict[str, str]:
    """Parse ``--name=value`` and ``--name value``; a flag without a value is "true".

    The command line of a shell (``sh -c "kube-proxy --proxy-mode=ipvs 1>>log"``) is split at spaces.
    """
    flags: dict[str, str] = {}
    split = [part for word in words for part in word.split()]
    for word, following in zip(split, [*split[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            flags[name[2:]] = value if equals else following if following and not following.startswith("-") else "true"
    return flags


def _proxy_of(spec: Object) -> Object:
    """Return a pod's kube-proxy container."""
    containers: list[Object] = spec["containers"]
    return next((container for container in containers if container["name"] == "kube-proxy"), containers[0])


def _read_pod(api: Api, configured: Configured, source: str, spec: Object) -> ConfigMapKey | None:
    """Read the mode of a pod's kube-proxy container, from its ``--config`` file or its flags."""
    flags = parse_flags(_words(_proxy_of(spec)))
    configured.workloads += 1
    if "config" not in flags:
        flag = "--proxy-mode" if flags.get("proxy-mode") else "no --proxy-mode, the default"
        configured.settings.append(Setting(f"{source}: {flag}", flags.get("proxy-mode") or DEFAULT_MODE))
        return None
    # With --config, kube-proxy ignores its other flags.
    names = [volume["configMap"]["name"] for volume in spec.get("volumes") or () if "configMap" in volume]
    return _read_config(api, configured, names or CONFIGMAP_NAMES, (PurePosixPath(flags["config"]).name, *CONFIG_KEYS))


def _read_config(api: Api, configured: Configured, names: Sequence[str], keys: Sequence[str]) -> ConfigMapKey | None:
    """Read the mode from the first of these ConfigMaps that has one of the keys."""
    for name in names:
        with configured.asking(f"ConfigMap {name}"):
            document = api.find(f"{CONFIGMAPS}/{name}") or {}
            data = document.get("data") or {}
            key = next((key for key in keys if key in data), None)
            if not key:
                continue
            config = ConfigMapKey(name, key, data[key], last_change(document))
            mode = parse_mode(data[key])
            empty = "" if mode else ": empty, the default"
            setting = Setting(f"ConfigMap {name}, {key}{empty}", mode or DEFAULT_MODE)
            if setting not in configured.settings:
                configured.settings.append(setting)
            configured.config = configured.config or config
            return config
    return None


def _parse(text: str) -> Object:
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        document = None
    if not isinstance(document, dict):
        raise MachineError("kube-proxy's ConfigMap does not hold a KubeProxyConfiguration", BY_HAND)
    return document


def parse_mode(text: str) -> str:
    """Return ``mode`` of a KubeProxyConfiguration; "" if it is empty.

    :raises MachineError: the text is not a YAML mapping.
    """
    return str(_parse(text).get("mode") or "")


def change_mode(text: str, mode: str) -> str:
    """Return the configuration with another mode. All other text stays, even a comment on the mode's line.

    :raises MachineError: the text is not a YAML mapping, or its mode is not on one plain line.
    """
    document = _parse(text)
    changed, count = re.subn(_MODE_LINE, rf'mode: "{mode}"\1', text)
    if "mode" not in document:
        changed = f'{text.rstrip()}\nmode: "{mode}"\n'
    try:
        same = count == ("mode" in document) and _parse(changed) == document | {"mode": mode}
    except MachineError:
        same = False
    if not same:
        raise MachineError("the mode in kube-proxy's ConfigMap is not on one line of the form mode: NAME", BY_HAND)
    return changed


def parse_node_arguments(nodes: Sequence[Object], preferred: str) -> list[Setting]:
    """Parse the modes of embedded kube-proxies, from the annotations of their nodes.

    Sample: ``'["server","--kube-proxy-arg","proxy-mode=ipvs"]'``.

    :param preferred: the name of a node to read alone, if it is among the nodes.
    """
    own = [node for node in nodes if node["metadata"]["name"] == preferred]
    settings: dict[str, Setting] = {}
    for node in own or nodes:
        annotations: Mapping[str, str] = node["metadata"].get("annotations") or {}
        for name in NODE_ARGUMENTS:
            if name not in annotations:
                continue
            try:
                words = [str(word) for word in json.loads(annotations[name])]
            except (ValueError, TypeError):
                continue
            if parse_flags(words).get("disable-kube-proxy", "false") != "false":
                continue
            modes = re.findall(r"proxy-mode=(\w+)", " ".join(words))
            mode = modes[-1] if modes else DEFAULT_MODE
            source = name if modes else f"{name}, the default"
            settings.setdefault(mode, Setting(f"node {node['metadata']['name']}: {source}", mode))
    return list(settings.values())
