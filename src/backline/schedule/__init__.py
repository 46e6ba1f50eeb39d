"""What runs next: pure policies over plain data, and the one driver that turns their decisions into runs."""
