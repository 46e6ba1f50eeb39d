"""What a malicious client does, and how an honest one fares meanwhile. Only for servers on the loopback interface."""
