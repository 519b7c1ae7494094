"""`report.html` of a run: page and charts from plain data, pictures and figures from a run."""
