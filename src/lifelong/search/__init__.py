"""Which λ: sweeps, the choice by branching, searches."""
