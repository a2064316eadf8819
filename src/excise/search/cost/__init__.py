"""What a run costs, before it is made: memory by a formula, time by that and the speed of the loaded model."""
