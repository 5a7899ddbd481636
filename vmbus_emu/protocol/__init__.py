"""Pure data: numbers, layouts and codecs of every protocol spoken here. Imports nothing of ours."""
