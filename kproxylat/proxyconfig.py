"""What the API says of kube-proxy: its ConfigMap, its pods' flags, its node's arguments, or its replacement."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from kproxylat.cluster import Api, Object
from kproxylat.errors import ApiError, MachineError

DEFAULT_MODE = "iptables"
"""Of an empty ``mode``, on Linux (Kubernetes, pkg/proxy/apis/config/types.go, ProxyMode)."""
NAMESPACE = "/namespaces/kube-system"
DAEMONSETS = f"/apis/apps/v1{NAMESPACE}/daemonsets"
CONFIGMAPS = f"/api/v1{NAMESPACE}/configmaps"
CONFIGMAP_NAMES = ("kube-proxy", "kube-proxy-config")
"""kubeadm's and EKS's."""
CONFIG_KEYS = ("config.conf", "config", "kube-proxy-config.yaml")
"""kubeadm's, the older one that EKS has too, and OpenShift's."""
POD_LABELS = ("k8s-app=kube-proxy", "component=kube-proxy")
"""kubeadm's; that of the static pods of RKE2 and GKE."""
BY_HAND = "edit it by hand: kubectl -n kube-system edit configmap kube-proxy"
_MODE_LINE = re.compile(r"""^mode:[ \t]*(?:"\w*"|'\w*'|\w*)([ \t]*|[ \t]+\#.*)(?=\r?$)""", re.M)
NODE_ARGUMENTS = ("k3s.io/node-args", "rke2.io/node-args")
"""Annotations of a node whose kube-proxy is a part of another program: that one's arguments, as a JSON list."""
REPLACEMENTS = {
    "anetd": "GKE Dataplane V2 (Cilium)",
    "antrea-agent": "Antrea",
    "calico-node": "Calico",
    "cilium": "Cilium",
    "kube-router": "kube-router",
    "ovnkube-node": "OVN-Kubernetes",
}
"""DaemonSet in kube-system -> what can stand in for kube-proxy."""


@dataclass(frozen=True)
class Setting:
    """A mode that kube-proxy was told, and where that is written."""

    source: str
    mode: str


@dataclass(frozen=True)
class ConfigMapKey:
    """Where kube-proxy's configuration lies in kube-system, its text, and when it was changed last ("": unknown)."""

    name: str
    key: str
    text: str
    changed: str = ""


@dataclass
class Configured:
    """What the API says of kube-proxy.

    :param config: its ConfigMap's key, where it has one. ``daemonsets``: those that read it.
    :param workloads: what runs it: DaemonSets, pods, nodes' own programs.
    :param replacements: what was found that can stand in for it.
    :param unasked: what could not be looked at, and why.
    """

    settings: list[Setting] = field(default_factory=list)
    config: ConfigMapKey | None = None
    daemonsets: list[Object] = field(default_factory=list)
    workloads: int = 0
    replacements: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """Note down what may not be read, and go on."""
        try:
            yield
        except ApiError as error:
            if error.status != 403:
                raise
            self.unasked.append(f"{what}: {error}")


def read_configured(api: Api, node: str) -> Configured:
    """Read whatever the API has, as far as it may be read.

    :param node: this machine's name, whose node's arguments are preferred.
    :raises MachineError: the API cannot be asked at all.
    """
    found = Configured()
    daemonsets: list[Object] = []
    with found.asking("DaemonSets in kube-system"):
        daemonsets = list(api.list(DAEMONSETS))
    proxies = [each for each in daemonsets if is_kube_proxy(each)]
    for each in proxies:
        config = _read_pod(api, found, f"DaemonSet {each['metadata']['name']}", each["spec"]["template"]["spec"])
        if config and config == found.config:
            found.daemonsets.append(each)
    if not proxies:
        with found.asking("pods in kube-system"):
            for pod in _list_pods(api, node):
                _read_pod(api, found, f"pod {pod['metadata']['name']}", pod["spec"])
    if not found.config and not found.settings:
        _read_config(api, found, CONFIGMAP_NAMES, CONFIG_KEYS)
    if not found.settings:
        with found.asking("nodes"):
            found.settings += parse_node_arguments(list(api.list("/api/v1/nodes")), node)
            found.workloads += len(found.settings)
    with found.asking("ConfigMap cilium-config"):
        cilium = (api.find(f"{CONFIGMAPS}/cilium-config") or {}).get("data") or {}
        if cilium.get("kube-proxy-replacement") in ("true", "strict"):
            found.replacements.append("Cilium (ConfigMap cilium-config: kube-proxy-replacement)")
    if not found.workloads and not found.replacements:
        names = [each["metadata"]["name"] for each in daemonsets]
        found.replacements += [f"{REPLACEMENTS[name]} (DaemonSet {name})" for name in names if name in REPLACEMENTS]
    return found


def _list_pods(api: Api, node: str) -> list[Object]:
    """Return the node's pod that runs kube-proxy; without one, of the pods of all nodes those that are told another."""
    for only in ({"fieldSelector": f"spec.nodeName={node}"}, {}):
        pods = [
            pod for label in POD_LABELS for pod in api.list(f"/api/v1{NAMESPACE}/pods", labelSelector=label, **only)
        ]
        if pods:
            return [*{str(parse_flags(_words(_proxy_of(pod["spec"])))): pod for pod in reversed(pods)}.values()][::-1]
    return []


def last_change(document: Object) -> str:
    """Return when an object was changed last but for its status, by the API server's clock; "" if it does not tell."""
    fields = document["metadata"].get("managedFields") or ()
    return max((each.get("time") or "" for each in fields if each.get("subresource") != "status"), default="")


def is_kube_proxy(daemonset: Object) -> bool:
    """Whether a DaemonSet runs kube-proxy on Linux."""
    spec = daemonset["spec"]["template"]["spec"]
    if (spec.get("nodeSelector") or {}).get("kubernetes.io/os") == "windows":
        return False
    return any(each["name"] == "kube-proxy" or "kube-proxy" in _words(each)[:1] for each in spec["containers"])


def _words(container: Object) -> list[str]:
    """Return a container's command line, the program without its directory."""
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    return [PurePosixPath(words[0]).name, *words[1:]] if words else []


def parse_flags(words: Sequence[str]) -> dict[str, str]:
    """Read ``--name=value`` and ``--name value``; a flag that stands alone is "true".

    A shell's command line (``sh -c "kube-proxy --proxy-mode=ipvs 1>>log"``) is split at blanks.
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
    return next((each for each in containers if each["name"] == "kube-proxy"), containers[0])


def _read_pod(api: Api, found: Configured, source: str, spec: Object) -> ConfigMapKey | None:
    """Read a pod's kube-proxy container: the mode is in its ``--config`` file, else in its flags."""
    flags = parse_flags(_words(_proxy_of(spec)))
    found.workloads += 1
    if "config" not in flags:
        written = "--proxy-mode" if flags.get("proxy-mode") else "no --proxy-mode, the default"
        found.settings.append(Setting(f"{source}: {written}", flags.get("proxy-mode") or DEFAULT_MODE))
        return None
    # With --config, kube-proxy ignores its other flags.
    names = [each["configMap"]["name"] for each in spec.get("volumes") or () if "configMap" in each]
    return _read_config(api, found, names or CONFIGMAP_NAMES, (PurePosixPath(flags["config"]).name, *CONFIG_KEYS))


def _read_config(api: Api, found: Configured, names: Sequence[str], keys: Sequence[str]) -> ConfigMapKey | None:
    """Read the mode from the first of these ConfigMaps that has one of the keys."""
    for name in names:
        with found.asking(f"ConfigMap {name}"):
            document = api.find(f"{CONFIGMAPS}/{name}") or {}
            data = document.get("data") or {}
            key = next((each for each in keys if each in data), None)
            if key:
                config = ConfigMapKey(name, key, data[key], last_change(document))
                mode = parse_mode(data[key])
                empty = "" if mode else ": empty, the default"
                setting = Setting(f"ConfigMap {name}, {key}{empty}", mode or DEFAULT_MODE)
                if setting not in found.settings:
                    found.settings.append(setting)
                found.config = found.config or config
                return config
    return None


def _parse(text: str) -> Object:
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        document = None
    if not isinstance(document, dict):
        raise MachineError("kube-proxy's ConfigMap holds no KubeProxyConfiguration", BY_HAND)
    return document


def parse_mode(text: str) -> str:
    """Return ``mode`` of a KubeProxyConfiguration, "" if it is empty.

    :raises MachineError: the text is no YAML mapping.
    """
    return str(_parse(text).get("mode") or "")


def change_mode(text: str, mode: str) -> str:
    """Return the configuration with another mode, and nothing else changed: the rest of its line stays, too.

    :raises MachineError: the text is no YAML mapping, or its mode is not on one plain line.
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
    """Read the mode of an embedded kube-proxy from its node's annotation.

    Sample: ``'["server","--kube-proxy-arg","proxy-mode=ipvs"]'``.

    :param preferred: the node to read, if it is there; else all of them.
    """
    own = [node for node in nodes if node["metadata"]["name"] == preferred]
    found: dict[str, Setting] = {}
    for node in own or nodes:
        annotations: Mapping[str, str] = node["metadata"].get("annotations") or {}
        for name in NODE_ARGUMENTS:
            if name not in annotations:
                continue
            try:
                words = [str(each) for each in json.loads(annotations[name])]
            except (ValueError, TypeError):
                continue
            if parse_flags(words).get("disable-kube-proxy", "false") != "false":
                continue
            modes = re.findall(r"proxy-mode=(\w+)", " ".join(words))
            mode = modes[-1] if modes else DEFAULT_MODE
            written = name if modes else f"{name}, the default"
            found.setdefault(mode, Setting(f"node {node['metadata']['name']}: {written}", mode))
    return list(found.values())
