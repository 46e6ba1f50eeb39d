"""Malicious clients, and an honest one to measure the effect. Only for servers on the loopback interface."""
