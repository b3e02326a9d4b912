"""kube-proxy's rules as text: services, rules, captured rulesets."""
