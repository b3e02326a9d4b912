"""kproxylat: what kube-proxy costs a packet inside the kernel, measured and proved."""

__version__ = "0.1.0"
