"""The paper's tables and figures: run the cells, collect the scores, make the tables."""
