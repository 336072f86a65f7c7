"""How fast the mixer is, against what, measured how."""
