#!/bin/sh
exec kproxylat run 0.5 400 --lab --mode iptables --backend nft
