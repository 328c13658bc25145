"""The attacks, a file each: `open_attack(parts)` gives the attack of its file, ready to be searched."""
