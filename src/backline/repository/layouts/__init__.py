"""The layouts of repositories, for Backline and other servers: where models, versions and their files are."""
