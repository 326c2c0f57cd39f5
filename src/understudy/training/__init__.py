"""From an objective and a transfer set to a trained student: by gradient, or by growing trees."""
