"""kube-proxy's configuration in the API: its ConfigMap, its pods' flags, its node's arguments, or its replacement."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePosixPath

from kproxylat.cluster.api import Api, join_path
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
"""DaemonSet in kube-system -> the program that can replace kube-proxy, but often runs beside it."""
_ANY_NODE = {"kubernetes.io/os", "beta.kubernetes.io/os"}


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
    :param replacements: programs that replace kube-proxy, by their configuration.
    :param candidates: programs in the cluster that can replace kube-proxy, but may run beside it.
    :param disabled: settings that switch kube-proxy off.
    :param problems: reasons why kube-proxy's configuration is not known, such as a DaemonSet without pods.
    :param has_node: whether the API knows the node.
    :param unasked: sources that could not be read, with the reason.
    """

    settings: list[Setting] = field(default_factory=list)
    config: ConfigMapKey | None = None
    daemonsets: list[Object] = field(default_factory=list)
    workloads: int = 0
    replacements: list[str] = field(default_factory=list)
    candidates: list[str] = field(default_factory=list)
    disabled: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    has_node: bool = False
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
    empty = [daemonset for daemonset in proxies if has_no_pods(daemonset)]
    proxies = [daemonset for daemonset in proxies if daemonset not in empty]
    for proxy in proxies:
        config = _read_pod(api, configured, f"DaemonSet {proxy['metadata']['name']}", proxy["spec"]["template"]["spec"])
        if config and config == configured.config:
            configured.daemonsets.append(proxy)
    if not proxies:
        with configured.asking("pods in kube-system"):
            for pod in _list_pods(api, node):
                _read_pod(api, configured, f"pod {pod['metadata']['name']}", pod["spec"])
    if not configured.workloads:
        configured.problems += [f"DaemonSet {proxy['metadata']['name']} has no pods" for proxy in empty]
    if not configured.config and not configured.settings and not configured.problems:
        _read_config(api, configured, CONFIGMAP_NAMES, CONFIG_KEYS)
    if not configured.settings:
        with configured.asking("nodes"):
            _read_nodes(configured, list(api.list("/api/v1/nodes")), node)
    _read_replacements(api, configured, daemonsets, empty)
    return configured


def _read_nodes(configured: Configured, nodes: Sequence[Object], preferred: str) -> None:
    """Read the arguments of nodes whose kube-proxy is part of another program: the preferred node's, or all."""
    own = [node for node in nodes if node["metadata"]["name"] == preferred]
    configured.has_node = bool(own)
    settings = parse_node_arguments(own or nodes)
    configured.disabled += [setting.source for setting in settings if not setting.mode]
    configured.settings += [setting for setting in settings if setting.mode]
    configured.workloads += len(configured.settings)


def _read_replacements(api: Api, configured: Configured, daemonsets: list[Object], empty: list[Object]) -> None:
    """Find the programs that replace kube-proxy, and those that can: a DaemonSet's name proves nothing."""
    answer = ""
    with configured.asking("ConfigMap cilium-config"):
        cilium = (api.find(join_path(CONFIGMAPS, "cilium-config")) or {}).get("data") or {}
        answer = cilium.get("kube-proxy-replacement", "")
        if answer in ("true", "strict"):
            configured.replacements.append("Cilium (ConfigMap cilium-config: kube-proxy-replacement)")
    if configured.workloads or configured.replacements:
        return
    for proxy in empty:
        # Calico's documentation switches kube-proxy off by this label, which no node has.
        if "non-calico" in _node_selector(proxy):
            configured.replacements.append(f"Calico (DaemonSet {proxy['metadata']['name']}: nodeSelector non-calico)")
    for daemonset in daemonsets:
        name = daemonset["metadata"]["name"]
        is_off = has_no_pods(daemonset) or (name == "cilium" and answer in ("false", "disabled"))
        if name in REPLACEMENTS and not is_off:
            configured.candidates.append(f"{REPLACEMENTS[name]} (DaemonSet {name})")


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
    if _node_selector(daemonset).get("kubernetes.io/os") == "windows":
        return False
    return any("kube-proxy" in (container["name"], *_words(container)[:1]) for container in spec["containers"])


def has_no_pods(daemonset: Object) -> bool:
    """Return whether the DaemonSet's controller has found no node for it."""
    status = daemonset.get("status") or {}
    # Before the controller has looked, the number is 0, too.
    is_known = status.get("observedGeneration") or _node_selector(daemonset).keys() - _ANY_NODE
    return bool(is_known) and status.get("desiredNumberScheduled") == 0


def _node_selector(daemonset: Object) -> dict[str, str]:
    return daemonset["spec"]["template"]["spec"].get("nodeSelector") or {}


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
    for word, following in pairwise([*split, ""]):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            flags[name[2:]] = value if equals else following if following and not following.startswith("-") else "true"
    return flags


def _proxy_of(spec: Object) -> Object:
    containers: list[Object] = spec["containers"]
    named = (container for container in containers if container["name"] == "kube-proxy")
    return next(named, containers[0] if containers else {})


def _read_pod(api: Api, configured: Configured, source: str, spec: Object) -> ConfigMapKey | None:
    """Read the mode of a pod's kube-proxy container, from its ``--config`` file or its flags."""
    flags = parse_flags(_words(_proxy_of(spec)))
    configured.workloads += 1
    if "config" not in flags:
        flag = "--proxy-mode" if flags.get("proxy-mode") else "no --proxy-mode, the default"
        configured.settings.append(Setting(f"{source}: {flag}", flags.get("proxy-mode") or DEFAULT_MODE))
        return None
    # With --config, kube-proxy ignores its other flags.
    path = PurePosixPath(flags["config"])
    if file := _find_host_file(spec, path):
        configured.problems.append(f"{source} reads its configuration from the file {file} of its node")
        return None
    names = [volume["configMap"]["name"] for volume in spec.get("volumes") or () if "configMap" in volume]
    return _read_config(api, configured, names or CONFIGMAP_NAMES, (path.name, *CONFIG_KEYS))


def _find_host_file(spec: Object, path: PurePosixPath) -> PurePosixPath | None:
    """Return the node's file behind a path in the kube-proxy container; None if it is not on a hostPath volume."""
    host_paths = {v["name"]: v["hostPath"]["path"] for v in spec.get("volumes") or () if "hostPath" in v}
    mounts = {PurePosixPath(m["mountPath"]): m["name"] for m in _proxy_of(spec).get("volumeMounts") or ()}
    mount = next((folder for folder in (path, *path.parents) if folder in mounts), None)
    if not mount or mounts[mount] not in host_paths:
        return None
    return PurePosixPath(host_paths[mounts[mount]]) / path.relative_to(mount)


def _read_config(api: Api, configured: Configured, names: Sequence[str], keys: Sequence[str]) -> ConfigMapKey | None:
    """Read the mode from the first of these ConfigMaps that has one of the keys."""
    for name in names:
        with configured.asking(f"ConfigMap {name}"):
            document = api.find(join_path(CONFIGMAPS, name)) or {}
            data = document.get("data") or {}
            key = next((key for key in keys if key in data), None)
            if not key:
                continue
            config = ConfigMapKey(name, key, data[key], last_change(document))
            try:
                mode = parse_mode(data[key])
            except MachineError as error:
                configured.problems.append(f"ConfigMap {name}, {key}: {error}")
                return None
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
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError):
        documents = []
    if len(documents) > 1:
        raise MachineError(f"kube-proxy's ConfigMap holds {len(documents)} YAML documents instead of one", BY_HAND)
    document = documents[0] if documents else None
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


def parse_node_arguments(nodes: Sequence[Object]) -> list[Setting]:
    """Parse the modes of embedded kube-proxies, from the annotations of their nodes; "" where kube-proxy is disabled.

    Sample: ``'["server","--kube-proxy-arg","proxy-mode=ipvs"]'``.
    """
    settings: dict[str, Setting] = {}
    for node in nodes:
        annotations: Mapping[str, str] = node["metadata"].get("annotations") or {}
        for name in NODE_ARGUMENTS:
            if name not in annotations:
                continue
            try:
                words = [str(word) for word in json.loads(annotations[name])]
            except (ValueError, TypeError, RecursionError):
                continue
            if parse_flags(words).get("disable-kube-proxy", "false") != "false":
                settings.setdefault("", Setting(f"node {node['metadata']['name']}: {name}: --disable-kube-proxy", ""))
                continue
            modes = re.findall(r"proxy-mode=(\w+)", " ".join(words))
            mode = modes[-1] if modes else DEFAULT_MODE
            source = name if modes else f"{name}, the default"
            settings.setdefault(mode, Setting(f"node {node['metadata']['name']}: {source}", mode))
    return list(settings.values())
