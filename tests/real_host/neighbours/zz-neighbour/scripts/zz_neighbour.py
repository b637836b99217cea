"""Loaded after ours; owns a package that ours has too."""

import trainers

WHOSE = trainers.WHOSE
