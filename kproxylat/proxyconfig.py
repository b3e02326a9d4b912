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
    """Where kube-proxy's configuration lies in kube-system, and its text."""

    name: str
    key: str
    text: str


@dataclass
class Configured:
    """What the API says of kube-proxy.

    :param config: its ConfigMap's key, where it has one. ``daemonset``: its name.
    :param workloads: what runs it: DaemonSets, pods, nodes' own programs.
    :param replacements: what was found that can stand in for it.
    :param unasked: what could not be looked at, and why.
    """

    settings: list[Setting] = field(default_factory=list)
    config: ConfigMapKey | None = None
    daemonset: str | None = None
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
        found.daemonset = each["metadata"]["name"]
        _read_pod(api, found, f"DaemonSet {found.daemonset}", each["spec"]["template"]["spec"])
    if not proxies:
        with found.asking("pods in kube-system"):
            for label in POD_LABELS:
                pods = api.get(f"/api/v1{NAMESPACE}/pods", labelSelector=label, limit=1)["items"]
                for pod in pods:
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


def _read_pod(api: Api, found: Configured, source: str, spec: Object) -> None:
    """Read a pod's kube-proxy container: the mode is in its ``--config`` file, else in its flags."""
    containers = spec["containers"]
    container = next((each for each in containers if each["name"] == "kube-proxy"), containers[0])
    flags = parse_flags(_words(container))
    found.workloads += 1
    if "config" not in flags:
        written = "--proxy-mode" if flags.get("proxy-mode") else "no --proxy-mode, the default"
        found.settings.append(Setting(f"{source}: {written}", flags.get("proxy-mode") or DEFAULT_MODE))
        return
    # With --config, kube-proxy ignores its other flags.
    names = [each["configMap"]["name"] for each in spec.get("volumes") or () if "configMap" in each]
    _read_config(api, found, names or CONFIGMAP_NAMES, (PurePosixPath(flags["config"]).name, *CONFIG_KEYS))


def _read_config(api: Api, found: Configured, names: Sequence[str], keys: Sequence[str]) -> None:
    for name in names:
        with found.asking(f"ConfigMap {name}"):
            data = (api.find(f"{CONFIGMAPS}/{name}") or {}).get("data") or {}
            key = next((each for each in keys if each in data), None)
            if key:
                found.config = ConfigMapKey(name, key, data[key])
                mode = parse_mode(data[key])
                empty = "" if mode else ": empty, the default"
                found.settings.append(Setting(f"ConfigMap {name}, {key}{empty}", mode or DEFAULT_MODE))
                return


def parse_mode(text: str) -> str:
    """Return ``mode`` of a KubeProxyConfiguration, "" if it is empty.

    :raises MachineError: the text is no YAML mapping.
    """
    import yaml

    try:
        document = yaml.safe_load(text)
        return str(document.get("mode") or "")
    except (yaml.YAMLError, AttributeError):
        raise MachineError(
            "kube-proxy's ConfigMap holds no KubeProxyConfiguration", "kubectl -n kube-system edit configmap kube-proxy"
        ) from None


def change_mode(text: str, mode: str) -> str:
    """Return the configuration with another mode, and nothing else changed.

    :raises MachineError: the text is no YAML mapping.
    """
    parse_mode(text)
    line = f'mode: "{mode}"'
    changed, count = re.subn(r"^mode:.*$", line, text, flags=re.M)
    return changed if count else f"{text.rstrip()}\n{line}\n"


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
