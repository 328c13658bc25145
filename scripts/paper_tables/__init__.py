"""The paper's tables and figures: cells that are run, scores that are collected, tables made of them."""
