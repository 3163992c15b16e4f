"""The offline HTML report: a pure function of facts."""
