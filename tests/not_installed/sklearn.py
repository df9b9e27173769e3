"""Stands in for a package that users do not have: river imports scikit-learn where it finds it, for over a second."""

raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
