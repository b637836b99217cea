"""Jobs: a queue on disk, trainers as processes of their own, and what is known of every run.

Knows no host. `extension.jobs.manager.Jobs` is what the rest of the extension uses.
"""
