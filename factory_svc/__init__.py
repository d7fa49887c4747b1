"""The model factory: training methods, jobs, the model registry. It knows no other service but by a small Protocol."""
