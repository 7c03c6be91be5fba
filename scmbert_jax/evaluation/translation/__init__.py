"""What a model predicts of a modality that was not measured."""
