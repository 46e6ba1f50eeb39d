"""Commands that measure, examine or package."""
