"""How fast models run and how much memory they need, side by side on one machine."""
