class Other:
    def execute(self, requests):
        return []
