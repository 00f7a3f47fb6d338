"""The mathematics of RLHF under the papers' names: pure functions of arrays, one subject per file."""
