"""From a trained network to a verified model file that describes and tests itself.

Read the parts in this order: `export` (the steps), `parity` (does it compute what was validated), `golden` (samples
for the self-test), `publish` (contract in, file out). `precision` puts fp16 and int8 on top: `quantize` converts,
`race` measures speed.
"""
