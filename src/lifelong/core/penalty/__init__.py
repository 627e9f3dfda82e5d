"""The penalties Ω that importances are folded into, and their steps."""
