"""Packet generators: who sends."""
