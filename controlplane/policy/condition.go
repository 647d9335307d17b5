package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"

	"github.com/curfew-access/curfew/internal/grant"
)

// maxCost is what one evaluation of a condition may cost, in CEL's units: about one for each
// operation. It is checked when a file is parsed, for the largest facts that there can be, and again
// while a condition is evaluated.
const maxCost = 10000

// condition is the `when:` of a rule.
type condition struct {
	source  string
	program cel.Program
}

// variables are what conditions may speak of. Their names and types are a contract with every policy
// file that exists: never change one.
var variables = map[string]*cel.Type{
	"user": cel.StringType, "groups": cel.ListType(cel.StringType), "manager": cel.StringType,
	"on_call": cel.BoolType, "workload": cel.BoolType,
	"claims": cel.MapType(cel.StringType, cel.StringType),
	"role":   cel.StringType, "root": cel.BoolType,
	"host": cel.StringType, "hosts": cel.IntType,
	"labels": cel.MapType(cel.StringType, cel.StringType),
	"lasts":  cel.DurationType, "reason": cel.StringType, "ticket": cel.StringType,
	"clock": cel.StringType, "weekday": cel.StringType, "date": cel.StringType,
	"approved_in_a_row": cel.IntType,
	"emergency":         cel.BoolType, "single_use": cel.BoolType, "extension": cel.BoolType,
	"windows": cel.IntType,
}

// sizes are the largest that facts can be: of a string in bytes, of a list or a map in elements.
var sizes = map[string]uint64{
	"user": 32, "manager": 32, "role": 32, "host": 128, "clock": 5, "weekday": 3, "date": 10,
	"reason": grant.MaxReason, "groups": MaxGroupsOfUser, "claims": MaxClaims, "labels": maxLabels,
}

// longest is the cap of every other string in the facts: names, labels and claims.
const longest = 512

// getOverload is map.get(key): the value, or "" where there is none.
const getOverload = "curfew_get"

// compiler makes conditions of their source.
type compiler struct {
	env *cel.Env
	err error
}

func newCompiler() *compiler {
	get := cel.Function("get", cel.MemberOverload(getOverload,
		[]*cel.Type{cel.MapType(cel.StringType, cel.StringType), cel.StringType}, cel.StringType,
		cel.BinaryBinding(func(m, key ref.Val) ref.Val {
			mapper, ok := m.(traits.Mapper)
			if !ok {
				return types.MaybeNoSuchOverloadErr(m)
			}
			if v, found := mapper.Find(key); found {
				return v
			}
			return types.String("")
		})))
	options := []cel.EnvOption{get, cel.ParserRecursionLimit(100)}
	for name, t := range variables {
		options = append(options, cel.Variable(name, t))
	}
	env, err := cel.NewEnv(options...)
	return &compiler{env: env, err: err}
}

func (c *compiler) compile(source string) (*condition, error) {
	if c.err != nil {
		return nil, c.err
	}
	ast, issues := c.env.Compile(source)
	if err := issues.Err(); err != nil {
		return nil, errors.New(celWords(err))
	}
	if ast.OutputType() != cel.BoolType {
		return nil, fmt.Errorf("it is a %s, not true or false", ast.OutputType())
	}
	estimate, err := c.env.EstimateCost(ast, bounds{})
	if err != nil {
		return nil, err
	}
	if estimate.Max > maxCost {
		return nil, fmt.Errorf("it may cost %d steps; at most %d: it goes through too much text or too "+
			"many elements", estimate.Max, maxCost)
	}
	program, err := c.env.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxCost))
	if err != nil {
		return nil, errors.New(celWords(err))
	}
	return &condition{source: source, program: program}, nil
}

// celWords makes one line of what CEL says, which draws the place below the source.
func celWords(err error) string {
	var out []string
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '|' {
			continue
		}
		line = strings.TrimPrefix(line, "ERROR: <input>:")
		out = append(out, grant.VisibleText(line))
	}
	if len(out) > 3 {
		out = out[:3]
	}
	return "not a condition: column " + strings.Join(out, "; column ")
}

// holds evaluates the condition. What cannot be evaluated is an error, and an error denies.
func (c *condition) holds(facts interpreter.Activation) (bool, error) {
	out, _, err := c.program.Eval(facts)
	if err != nil {
		return false, err
	}
	yes, ok := out.(types.Bool)
	if !ok {
		return false, fmt.Errorf("it is %s, not true or false", out.Type().TypeName())
	}
	return bool(yes), nil
}

// bounds tell CEL how large the facts can be.
type bounds struct{}

// EstimateCallCost knows our own function, and leaves every other call to CEL.
func (bounds) EstimateCallCost(
	_, overload string, _ *cost.AstNode, _ []cost.AstNode,
) *cost.CallEstimate {
	if overload != getOverload {
		return nil
	}
	size := cost.RangedSizeEstimate(0, longest)
	return cost.NewCallEstimate(cost.FixedCostEstimate(2), &size)
}

// EstimateSize says the size of a variable and of what is in it.
func (bounds) EstimateSize(n cost.AstNode) *cost.SizeEstimate {
	path := n.Path()
	if len(path) == 0 {
		return nil
	}
	size := cost.RangedSizeEstimate(0, longest)
	switch most, ok := sizes[path[0]]; {
	case ok && len(path) == 1:
		size = cost.RangedSizeEstimate(0, most)
	case path[0] == "groups":
		size = cost.RangedSizeEstimate(0, 32) // a group's name
	}
	return &size
}

// VariableNames are the names that conditions may use, in order.
func VariableNames() []string {
	out := make([]string, 0, len(variables))
	for name := range variables {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
