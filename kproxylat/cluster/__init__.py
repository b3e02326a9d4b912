"""The Kubernetes API: target, dummy Services, kube-proxy's mode."""
