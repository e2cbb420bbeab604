"""How small: what is asked for, what every unit can trade for it, and how that is shared out."""
