"""`report.html` of a labelling job, finished or running: figures, pictures, and the page."""
