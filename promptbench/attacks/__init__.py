"""The attacks, one file each: `open_attack(parts)` returns the file's attack, ready to be searched."""
