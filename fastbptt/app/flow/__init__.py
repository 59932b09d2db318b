"""The command ``fastbptt flow``: the nets that it looks at, what it prints, and its page."""
