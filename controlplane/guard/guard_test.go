package guard_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/curfew-access/curfew/controlplane/guard"
)

// brittle panics at whatever it is asked, but for the service "sound".
type brittle struct {
	healthv1.UnimplementedHealthServer
}

func (brittle) Check(_ context.Context, r *healthv1.HealthCheckRequest) (
	*healthv1.HealthCheckResponse, error,
) {
	if r.GetService() == "sound" {
		return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_SERVING}, nil
	}
	answers := make([]*healthv1.HealthCheckResponse, 0)
	return answers[len(r.GetService())], nil
}

func (brittle) Watch(*healthv1.HealthCheckRequest, grpc.ServerStreamingServer[healthv1.HealthCheckResponse],
) error {
	panic(errors.New("a secret"))
}

// A handler that panics costs its own caller an internal error, of single calls and of streams; the
// server goes on, and the panic is counted and told with its stack.
func TestPanicCostsOneCall(t *testing.T) {
	var told []string
	g := guard.New(func(method string, err error) error {
		told = append(told, method+" "+err.Error())
		return status.Error(codes.Internal, "internal error (ref 1)")
	})
	server := grpc.NewServer(grpc.UnaryInterceptor(g.Unary), grpc.StreamInterceptor(g.Stream))
	healthv1.RegisterHealthServer(server, brittle{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := healthv1.NewHealthClient(conn)

	_, err = client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "x"})
	if status.Code(err) != codes.Internal || status.Convert(err).Message() != "internal error (ref 1)" {
		t.Errorf("a single call: %v", err)
	}
	stream, err := client.Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
		t.Errorf("a stream: %v", err)
	}
	if _, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "sound"}); err != nil {
		t.Errorf("a sound call afterwards: %v", err)
	}
	if len(told) != 2 || !strings.Contains(told[0], "Health/Check") || !strings.Contains(told[0], "index out of range") ||
		!strings.Contains(told[0], "brittle.Check") || !strings.Contains(told[1], "a secret") {
		t.Errorf("told was %q", told)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(g.Collectors()...)
	got, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]float64)
	for _, family := range got {
		for _, m := range family.GetMetric() {
			name := family.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			counts[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() +
				float64(m.GetHistogram().GetSampleCount())
		}
	}
	const check, watch = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
	for name, want := range map[string]float64{
		"curfew_panics_total":                       2,
		"curfew_grpc_calls_total Internal " + check: 1,
		"curfew_grpc_calls_total OK " + check:       1,
		"curfew_grpc_calls_total Internal " + watch: 1,
		"curfew_grpc_call_seconds " + check:         2,
		"curfew_grpc_calls_open " + check:           0,
		"curfew_grpc_calls_open " + watch:           0,
	} {
		if counts[name] != want {
			t.Errorf("%s is %v, want %v", name, counts[name], want)
		}
	}
}
