"""What the operating system provides: private files, locks, a user's folders, and polling."""
