"""The page of `fastbptt flow --serve`; its files are data."""
