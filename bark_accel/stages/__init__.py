"""The four stages: text -> semantic -> coarse -> fine -> waveform.

A stage holds weights; what changes lives in its State.
"""
