tessera_embed(tessera_cost tessera::cost embedded_calibrations src/cost/calibrations yaml)
