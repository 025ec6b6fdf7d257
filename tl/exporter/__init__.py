"""From a trained network to a verified model file that describes and tests itself.

Read the modules in this order: `export` (the steps), `parity` (compares the file with what was validated), `golden`
(samples for the self-test), `publish` (adds the contract and writes the file). `precision` adds fp16 and int8:
`quantize` converts, `race` measures speed.
"""
