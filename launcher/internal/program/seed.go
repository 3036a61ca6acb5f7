package program

// seed makes the NoCloud image that cloud-init reads, where /vm/cloud-init is mounted.
func (s *starter) seed(*plan) error { return nil }
