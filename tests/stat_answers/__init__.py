"""Which public function answers which topic of the cases: ANSWERS, topic -> function of (case, find)."""
