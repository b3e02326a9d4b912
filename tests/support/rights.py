"""The rights of docs/rbac.md, and those that calls need."""

from __future__ import annotations

import re

import yaml

from tests.support import ROOT
from tests.support.fake_api import FakeApi
from tests.support.fixtures import cluster, measured  # noqa: F401

DOCS = ROOT / "docs/rbac.md"
MANIFESTS = dict(re.findall(r"^## (.+?)\n.*?```yaml\n(.*?)```", DOCS.read_text(), re.M | re.S))
Right = tuple[str, str, str, str, str]


def rights(text: str) -> set[Right]:
    """Return verb, group, resource, namespace ("" for a ClusterRole) and name ("" for any) of each rule."""
    return {
        (verb, group, resource, role["metadata"].get("namespace", ""), name)
        for role in yaml.safe_load_all(text)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def made(fake: FakeApi) -> set[Right]:
    """Return the rights that the calls took; by its name each object of kube-system, which are not the user's.

    A look at a namespace is optional, as docs/rbac.md says: without the right, the answer is taken as it is.
    """
    calls = [call for call in fake.calls if (call.verb, call.resource) != ("get", "namespaces")]
    return {call if call.namespace == "kube-system" else call._replace(name="") for call in calls}
