"""Planning: choosing options from candidates, by their losses and costs, to meet a target."""
