"""Networks of genes out of a trained model: `scmbert networks infer`."""
