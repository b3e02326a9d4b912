"""kproxylat measures the latency that kube-proxy adds to a packet inside the kernel, and proves the number."""

__version__ = "0.1.0"
