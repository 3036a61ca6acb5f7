package main

// splitArguments cuts a command line of procfs, in which every argument ends with a zero byte, and drops the first.
func splitArguments(line []byte) []string {
	var args []string
	for start, i := 0, 0; i < len(line); i++ {
		if line[i] == 0 {
			args = append(args, string(line[start:i]))
			start = i + 1
		}
	}
	if len(args) == 0 {
		return nil
	}
	return args[1:]
}

// parseLimit reads one argument: memlock=unlimited or rtprio=N.
func parseLimit(arg string) (resource int, value uint64, ok bool) {
	switch {
	case arg == "memlock=unlimited":
		return rlimitMemlock, unlimited, true
	case len(arg) > 7 && arg[:7] == "rtprio=":
		n, ok := number(arg[7:])
		return rlimitRTPrio, uint64(n), ok && n <= 99
	}
	return 0, 0, false
}

// findPID returns the member "pid" of the top level of a JSON object. The state comes from the runtime; a member of
// that name inside a nested object (annotations are the Pod's) or inside a string does not count.
func findPID(state []byte) (int, bool) {
	depth := 0
	for i := 0; i < len(state); i++ {
		switch state[i] {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case '"':
			end := stringEnd(state, i)
			if depth == 1 && string(state[i:end]) == `"pid"` {
				if pid, ok := memberNumber(state[end:]); ok {
					return pid, true
				}
			}
			i = end - 1
		}
	}
	return 0, false
}

// stringEnd returns the index after the closing quote of the string that begins at start.
func stringEnd(s []byte, start int) int {
	for i := start + 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(s)
}

// memberNumber reads ": 123" after a member's name. A string "pid" that is a value has no colon behind it.
func memberNumber(s []byte) (int, bool) {
	s = skipBlank(s)
	if len(s) == 0 || s[0] != ':' {
		return 0, false
	}
	s = skipBlank(s[1:])
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	pid, ok := number(string(s[:n]))
	return pid, ok && pid > 0
}

func skipBlank(s []byte) []byte {
	for len(s) > 0 && (s[0] == ' ' || s[0] == '\t' || s[0] == '\n' || s[0] == '\r') {
		s = s[1:]
	}
	return s
}

// number reads up to nine decimal digits.
func number(s string) (int, bool) {
	if len(s) == 0 || len(s) > 9 {
		return 0, false
	}
	n := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n, true
}
