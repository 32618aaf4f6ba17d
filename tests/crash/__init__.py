"""Crashes on purpose: kills, power cuts, broken disks, broken networks; and the proof that they cost nothing."""
