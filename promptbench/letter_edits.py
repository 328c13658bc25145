"""What slips of the hand make of a word, at a place in it (0: its first letter)."""


def swap_letters(word: str, place: int) -> str:
    """The word with the letters at `place` and after it exchanged."""
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def substitute_letter(word: str, place: int, letter: str) -> str:
    return word[:place] + letter + word[place + 1 :]


def delete_letter(word: str, place: int) -> str:
    return word[:place] + word[place + 1 :]


def insert_letter(word: str, place: int, letter: str) -> str:
    """The word with a letter more, before the one at `place`."""
    return word[:place] + letter + word[place:]
